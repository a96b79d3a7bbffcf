"""Records of the objects that the informers follow."""
