"""Understanding the network: analyses of which ReLUs fire, arrays in and arrays out."""
