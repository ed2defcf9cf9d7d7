"""`python -m gatehouse_echo`: run the service."""

from gatehouse_echo.sessions import StatefulApp
from gatehouse_echo.settings import EchoSettings
from gatehouse_echo.stateful import create_stateful_server
from gatehouse_echo.tools import create_server
from gatehouse_service.configuration import ConfigurationError, ServiceSettings, addresses, load, stop
from gatehouse_service.native import App, log_to_stdout
from gatehouse_service.serving import serve


def main() -> None:
    """Read the configuration, listen, serve until SIGTERM."""
    try:
        settings, echo = load(ServiceSettings), load(EchoSettings)
    except ConfigurationError as error:
        stop("\n".join(error.problems))
    log_to_stdout(settings.service)
    app = (
        StatefulApp(settings, echo, create_stateful_server(settings))
        if echo.stateful
        else App(settings, create_server(settings))
    )
    serve(app, addresses(settings.listen), settings.drain_seconds)


if __name__ == "__main__":
    main()
