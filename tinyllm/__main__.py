"""`python -m tinyllm` is `tinyllm`."""

from tinyllm.cli.main import main

if __name__ == "__main__":  # a worker process loads its parent's main module once more, under another name
    main()
