"""Ha, Dai and Le, "HyperNetworks": hypernetworks that generate the weights of recurrent and convolutional networks."""
