"""Image data: what a data set is and how a card becomes one.

A data set is a fixed, numbered list of images; it knows no order of training, no batch and no torch.
`stream.Stream` turns one into training batches, `reference.DatasetImages` into an image set to score
against.
"""
