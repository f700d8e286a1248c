"""Every rule, in every form, has the bits of the specification and of the CPU's loop on a GPU."""

from __future__ import annotations

import pytest
import torch
from gpu_training import KERNELS, skip_unless_present, trio
from helpers import KINDS, NARROW
from rule_table import RULES

pytestmark = pytest.mark.gpu

# Around 16-byte accesses and the 2,048 elements of a block.
NUMELS = [1, 17, 0, 2049, 5000]
KIND_NAMES = ("float32", "bfloat16", "float16-with-float32-grad", "float64")
FORMS = {
    "backup": {},
    "no-backup": {"backup": False},
    "rollout": {"prediction": "rollout", "prediction_steps": 2.5},
    "rollout-no-backup": {"prediction": "rollout", "prediction_steps": 2.5, "backup": False},
    "bfloat16-copies": {"compute_dtype": torch.bfloat16},
    "rollout-copies": {"prediction": "rollout", "compute_dtype": torch.bfloat16},
    # Its powers of the betas are products: the last bit of a float64 may differ.
    "counts-on-the-device": {"capturable": True, "record_dtype": torch.float32},
}


@pytest.fixture(params=KERNELS)
def backend(request):
    skip_unless_present(request.param)
    return request.param


def cases():
    """Rules, kinds and forms that go together."""
    for name, case in RULES.items():
        for kind in KIND_NAMES:
            for form, options in FORMS.items():
                needs_way_back = not options.get("backup", True)
                may_go_back = KINDS[kind][0] not in NARROW and case.rule().can_recover()
                is_comparable = not ("capturable" in options and kind == "float64")
                may_be_copied = "compute_dtype" not in options or kind == "float32"
                if (may_go_back or not needs_way_back) and is_comparable and may_be_copied:
                    yield pytest.param(case, *KINDS[kind], options, id=f"{name}-{kind}-{form}")


@pytest.mark.parametrize("case, dtype, grad_dtype, options", list(cases()))
def test_rules_have_the_same_bits(backend, case, dtype, grad_dtype, options, generator):
    result = trio(backend, NUMELS, dtype, make=case.make, **{**case.options, **options})
    for _ in range(2):  # from the sixth step on updates can be rectified
        result.run_everything(generator, grad_dtype)
