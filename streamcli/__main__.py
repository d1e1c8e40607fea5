"""`python -m streamcli`, and the command's entry point."""

from streamcli.cli.main import main

if __name__ == "__main__":
    main()
