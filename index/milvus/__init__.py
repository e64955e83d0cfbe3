"""Collections kept by Milvus: the same promises as the local store's, for more than one machine."""
