"""Adam with the running maximum of v in its place (Reddi et al. 2018, arXiv 1904.09237)."""

from __future__ import annotations

from wpadamw.rules.adam import Adam
from wpadamw.rules.amsgrad import AMSGrad


class AdamAMSGrad(AMSGrad, Adam):
    """The coupled decay of Adam."""

    name = "adam_amsgrad"
