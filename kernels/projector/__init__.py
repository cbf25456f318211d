"""Linear layer with the epilogues of the connectors, whole or after a library's product. See README.md."""
