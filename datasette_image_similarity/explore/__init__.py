"""What is made of a whole collection: map, duplicates, clusters, evaluation."""
