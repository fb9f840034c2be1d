"""One pass over weights in C: Σ|w| and Σw², as fast as the memory gives them.

The C compiler of the machine makes a small shared library for its own processor; it is kept in the
cache, so a machine builds it once. Without a compiler there is none, and the caller goes another
way. It takes 0.1 s to build, where torch.compile takes 9.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

from mobilekit.core import console
from mobilekit.core.cache import cache_root
from mobilekit.core.errors import OutputError
from mobilekit.core.files import atomic_write, sha256_json

# float32 weights are summed in float64. Of 16-bit weights, whose squares are exact in float32,
# each lane adds up four pairs in float32 before it adds them to a float64: at most four roundings,
# so a score is within 4e-7 of the exact one, in the worst case. The order of these roundings is
# part of the definition, see BLOCK: it is the same on every processor, and kernel.py keeps it too.
# Rows are added up with the error of each addition carried along (Knuth's TwoSum), so a unit's sums
# do not depend on how its rows are cut into calls. A fused multiply-add rounds as a product and
# a sum do, since the products are exact. No -ffast-math: it would undo all that.
LANES, DEPTH = 32, 4
BLOCK = 2 * LANES * DEPTH  # 16-bit weights: DEPTH times LANES pairs, a lane a pair
SQUARES = (2.0**-70, 2.0**120)  # rows whose Σw² lies outside are summed in float64: float32 ends
_SOURCE = r"""
#include <stdint.h>
#include <string.h>
#define AHEAD 4096 /* bytes to prefetch; rows of one tensor follow one another in memory */

static inline float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline float abs_bfloat16(uint32_t v) { return as_float((v << 16) & 0x7fffffffu); }
static inline float abs_float32(uint32_t v) { return as_float(v & 0x7fffffffu); }
static inline float abs_float16(uint32_t v) {
  uint32_t e = v & 0x7fffu;
  uint32_t whole = (e << 13) + (112u << 23) + (e >= 0x7c00u ? 112u << 23 : 0u);
  float tiny = as_float((e << 13) + (113u << 23)) - as_float(113u << 23); /* subnormal */
  return e < 0x400u ? tiny : as_float(whole);
}
static inline void add(double *sum, double w) { /* sum[0] + sum[1] is the sum, nearly exact */
  double s = sum[0] + w, b = s - sum[0];
  sum[1] += (sum[0] - (s - b)) + (w - b);
  sum[0] = s;
}
static inline void add_lanes(double *p, double *q) {
  for (int half = LANES / 2; half; half /= 2)
    for (int j = 0; j < half; j++) {
      p[j] += p[j + half];
      q[j] += q[j + half];
    }
}

/* x: a row of n weights; p[0], q[0]: its sums */
#define WIDE(NAME, TYPE)                                                                        \
  static void wide_##NAME(const TYPE *x, int64_t n, double *p, double *q) {                     \
    int64_t i = 0;                                                                              \
    for (; i + LANES <= n; i += LANES) {                                                        \
      __builtin_prefetch((const char *)(x + i) + AHEAD, 0, 0);                                  \
      for (int j = 0; j < LANES; j++) {                                                         \
        double w = (double)abs_##NAME(x[i + j]);                                                \
        p[j] += w;                                                                              \
        q[j] += w * w;                                                                          \
      }                                                                                         \
    }                                                                                           \
    for (int j = 0; i < n; i++, j++) {                                                          \
      double w = (double)abs_##NAME(x[i]);                                                      \
      p[j] += w;                                                                                \
      q[j] += w * w;                                                                            \
    }                                                                                           \
    add_lanes(p, q);                                                                            \
  }

/* the whole blocks of a row of 16-bit weights; returns how many weights they are */
#define NARROW(NAME)                                                                            \
  static int64_t narrow_##NAME(const uint16_t *x, int64_t n, double *p, double *q) {            \
    int64_t i = 0;                                                                              \
    for (; i + 2 * LANES * DEPTH <= n; i += 2 * LANES * DEPTH) {                                \
      float s[LANES] = {0}, t[LANES] = {0};                                                     \
      for (int k = 0; k < DEPTH; k++) {                                                         \
        const uint16_t *y = x + i + 2 * LANES * k;                                              \
        __builtin_prefetch((const char *)y + AHEAD, 0, 0); /* two cache lines, of 64 bytes */   \
        __builtin_prefetch((const char *)y + AHEAD + 64, 0, 0);                                 \
        for (int j = 0; j < LANES; j++) {                                                       \
          uint32_t pair;                                                                        \
          memcpy(&pair, y + 2 * j, 4);                                                          \
          float a = abs_##NAME(pair & 0xffffu), b = abs_##NAME(pair >> 16);                     \
          s[j] += a + b;                                                                        \
          t[j] += a * a + b * b;                                                                \
        }                                                                                       \
      }                                                                                         \
      for (int j = 0; j < LANES; j++) {                                                         \
        p[j] += (double)s[j];                                                                   \
        q[j] += (double)t[j];                                                                   \
      }                                                                                         \
    }                                                                                           \
    add_lanes(p, q);                                                                            \
    return i;                                                                                   \
  }

/* x: (units, rows, n); out: (units, 4), each Σ|w| and its rest, Σw² and its rest, added to */
#define SUMS(NAME, TYPE, ROW)                                                                   \
  void sums_##NAME(const TYPE *x, int64_t units, int64_t rows, int64_t n, double *out) {        \
    for (int64_t row = 0; row < units * rows; row++, x += n) {                                  \
      double p[LANES] = {0}, q[LANES] = {0};                                                    \
      ROW                                                                                       \
      double *sum = out + 4 * (row / rows);                                                     \
      add(sum, p[0]);                                                                           \
      add(sum + 2, q[0]);                                                                       \
    }                                                                                           \
  }
#define HALF_ROW(NAME)                                                                          \
  int64_t done = narrow_##NAME(x, n, p, q);                                                     \
  if (done && p[0] != 0 && !(q[0] >= LEAST && q[0] <= MOST)) done = 0;                          \
  if (done < n) {                                                                               \
    double r[LANES] = {0}, s[LANES] = {0};                                                      \
    wide_##NAME(x + done, n - done, r, s);                                                      \
    p[0] = done ? p[0] + r[0] : r[0];                                                           \
    q[0] = done ? q[0] + s[0] : s[0];                                                           \
  }

WIDE(bfloat16, uint16_t)
WIDE(float16, uint16_t)
WIDE(float32, uint32_t)
NARROW(bfloat16)
NARROW(float16)
SUMS(bfloat16, uint16_t, HALF_ROW(bfloat16))
SUMS(float16, uint16_t, HALF_ROW(float16))
SUMS(float32, uint32_t, wide_float32(x, n, p, q);)
"""
DTYPES = ("bfloat16", "float16", "float32")
_COMPILERS = ("cc", "gcc", "clang")
_CONSTANTS = {"LANES": LANES, "DEPTH": DEPTH, "LEAST": SQUARES[0], "MOST": SQUARES[1]}
_FLAGS = ("-O3", "-shared", "-fPIC", *(f"-D{name}={value}" for name, value in _CONSTANTS.items()))
_TUNED = ("-march=native", "")  # some compilers of some processors do not know the first
_TIMEOUT = 60  # seconds; it takes a fraction of one


def is_built() -> bool:
    """Tell whether the library is there already, so that its use costs nothing."""
    return _file().is_file()


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, built first where it is not in the cache.

    Returns:
        ``None``, told with ``--verbose``, where it cannot be built or loaded.
    """
    file = _file()
    try:
        loaded = _loaded(file) if file.is_file() else None
        if loaded is None:  # not built yet, or damaged since
            if not _build(file):
                return None
            loaded = ctypes.CDLL(str(file))
    except (OSError, OutputError, subprocess.SubprocessError) as error:
        console.detail(f"the native kernel cannot be built or loaded: {error}")
        return None
    for name in DTYPES:
        function = getattr(loaded, f"sums_{name}")
        function.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
        function.restype = None
    return loaded


def _loaded(file: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        console.detail(f"{file} is built anew, since it cannot be loaded: {error}")
        return None


@functools.cache
def _file() -> Path:
    """Return where the library of this source and this processor is kept."""
    key = {"source": _SOURCE, "flags": _FLAGS, "processor": _processor()}
    return cache_root() / "kernels" / f"aimer-{sha256_json(key)[:16]}.so"


def _processor() -> str:
    """Return what tells processors with other instructions apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{platform.system()} {platform.machine()} {platform.processor()} {told}"


def _build(file: Path) -> bool:
    """Compile the library to ``file``, whole or not at all; tell whether that succeeded."""
    named = os.environ.get("CC", "").split()
    compiler = named or [found for name in _COMPILERS if (found := shutil.which(name))][:1]
    if not compiler:
        console.detail("no C compiler, so no native kernel")
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    for tuned in _TUNED:
        made = file.with_name(f".{file.name}.{os.getpid()}")
        flags = [*_FLAGS, *([tuned] if tuned else [])]
        done = subprocess.run(
            [*compiler, *flags, "-x", "c", "-", "-o", str(made)],
            input=_SOURCE.encode(),
            capture_output=True,
            timeout=_TIMEOUT,
        )
        if done.returncode == 0:
            atomic_write(file, made.read_bytes())
            made.unlink()
            return True
        made.unlink(missing_ok=True)
    told = done.stderr.decode(errors="replace").strip().splitlines()
    console.detail(f"the native kernel does not compile: {told[-1] if told else 'no reason given'}")
    return False
