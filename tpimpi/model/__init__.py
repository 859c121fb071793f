"""What a model is: sizes, tensors, encodings, the cut over ranks. No I/O."""
