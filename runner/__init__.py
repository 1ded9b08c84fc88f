"""`degrade`: controlled damage to the weights of a language model, and what the model says then."""
