"""`python -m gatehouse_echo`: run the service."""

from gatehouse_echo.tools import create_server
from gatehouse_service.configuration import ConfigurationError, ServiceSettings, addresses, load, stop
from gatehouse_service.native import App, log_to_stdout
from gatehouse_service.serving import serve


def main() -> None:
    """Read the configuration, listen, serve until SIGTERM."""
    try:
        settings = load(ServiceSettings)
    except ConfigurationError as error:
        stop("\n".join(error.problems))
    log_to_stdout(settings.service)
    app = App(settings, create_server(settings.tools))
    serve(app, addresses(settings.listen), settings.drain_seconds)


if __name__ == "__main__":
    main()
