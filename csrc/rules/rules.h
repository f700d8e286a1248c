// Every update rule, once: a new rule is a header and a name in this list.
#pragma once

#include "adamw.h"
#include "amsgrad.h"

#define WPADAMW_FOR_EACH_RULE(APPLY) \
  APPLY(AdamW)                       \
  APPLY(AMSGrad)
