// The transforms of ../winograd_transform.h on single numbers: a thread has one channel of one tile.
#pragma once
#include "activation_math.h"
#include "elementwise.h"

namespace {

using vf = float;

}  // namespace

#include "../winograd_transform.h"
