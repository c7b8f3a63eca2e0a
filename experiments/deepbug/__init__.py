"""DeepBug's study again: three networks trained on one task, and a pre-trained one on photographs and clips."""
