"""The command ``plan``: what another command's programs will take of a machine, from compilers and shapes."""
