"""BLIP3-o: a language model whose query states condition a flow-matching transformer that draws image features."""
