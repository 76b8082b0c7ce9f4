// What every program of this folder includes and no mistake changes: compiled once, before all of them.
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "simt.h"
#include "simt_ptx.h"
