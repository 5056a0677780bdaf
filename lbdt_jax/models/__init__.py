"""The network of LBDT (Ding et al., CVPR 2022), box by box. Knows flax, never TensorFlow."""
