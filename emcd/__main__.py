"""`python -m emcd` is the command `emcd`."""

from emcd.cli.main import main

if __name__ == "__main__":
    main()
