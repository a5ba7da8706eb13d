"""How the parts are put together: what a program or the command line holds in its hand."""
