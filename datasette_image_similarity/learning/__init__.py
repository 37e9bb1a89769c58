"""What is learned of a collection: smaller vectors, and ones that know its labels."""
