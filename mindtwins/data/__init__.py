"""What tasks share: decoding, files, order, batches computed ahead, augmentation, demo data."""
