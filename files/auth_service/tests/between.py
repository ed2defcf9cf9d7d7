"""A way to Redis that is slow, or breaks off."""

import contextlib
import socket
import threading
import time


class Between:
    """Passes bytes between the service and a port on loopback, in threads that end with the connections.

    `seconds` is what each way takes. What goes there waits while `questions` is not set, what comes
    back while `answers` is not.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self.seconds = 0.0
        self.answers, self.questions = threading.Event(), threading.Event()
        self.answers.set()
        self.questions.set()
        self._held = (self.questions, b"")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, gate: threading.Event, text: bytes) -> None:
        """Let things wait at this gate from the question on that has the text in it."""
        self._held = (gate, text)

    @property
    def url(self) -> str:
        return f"redis://auth@127.0.0.1:{self.port}/0"

    def close(self) -> None:
        self.seconds = 0.0
        self.answers.set()
        self.questions.set()
        # Closing alone does not wake who waits in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            for source, target, gate in ((near, far, self.questions), (far, near, self.answers)):
                threading.Thread(target=self._pass, args=(source, target, gate), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(65536):
                time.sleep(self.seconds)
                held, text = self._held
                if text and gate is self.questions and text in data:
                    held.clear()
                gate.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)
