"""A zoo: published models, each composed from the parts of the package with one box changed.

=================  ==============================================================  =================
model              the box that changes                                            source
=================  ==============================================================  =================
``VampVAE``        prior: a mixture of posteriors of learned pseudo-cells          Tomczak & Welling
``ScVAE``          objective: nats of KL(q(y|x)‖p(y)) that cost nothing            Grønbech et al.
=================  ==============================================================  =================

Lesson 14 trains each and tries the claim of its paper.
"""

from .scvae import ScVAE
from .vamp import VampVAE

__all__ = ["ScVAE", "VampVAE"]
