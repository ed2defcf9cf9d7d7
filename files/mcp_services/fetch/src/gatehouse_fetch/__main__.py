"""`python -m gatehouse_fetch`: run the service."""

if __name__ == "__main__":
    # Here and not above: a worker process runs this file too, under another name, and needs none of it.
    from gatehouse_fetch.service import main

    main()
