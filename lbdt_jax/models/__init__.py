"""The network of LBDT (Ding et al., CVPR 2022), one module for each box of figure 2, in flax."""
