"""The router: several inference nodes behind one address, with the services of a node."""
