"""A zoo: models of the literature, each composed from the parts of the package.

===============  ==============================================================  =================
model            the box that changes                                            source
===============  ==============================================================  =================
``VampVAE``      prior: a mixture of posteriors of learned pseudo-cells          Tomczak, Welling
``ScVAE``        loss: nats of KL(q(y|x)‖p(y)) that cost nothing                 Grønbech et al.
``M2``           prior and observed: a label y next to z, known for some cells   Kingma et al.
``FairVAE``      constraint: one distribution of z1 in all batches (MMD)         Louizos et al.
``VEGA``         decoder: linear, each dimension moves one gene set              Seninge et al.
``VASC``         likelihood: a drop whose probability depends on the level       Wang & Gu
``SISUALike``    observed: proteins of some cells; the encoder reads RNA         Trong et al.
``TotalVILike``  likelihood: proteins with a background                          Gayoso et al.
===============  ==============================================================  =================

Lesson 14 trains each and tries the claim of its paper.
"""

from .fair import FairVAE
from .m2 import M2
from .scvae import ScVAE
from .sisua import SISUALike
from .totalvi import TotalVILike
from .vamp import VampVAE
from .vasc import VASC
from .vega import VEGA

__all__ = ["M2", "VASC", "VEGA", "FairVAE", "SISUALike", "ScVAE", "TotalVILike", "VampVAE"]
