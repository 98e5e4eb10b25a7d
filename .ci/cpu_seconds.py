"""Processor time that a shell's children used between two calls of `times`, in whole seconds."""

import re
import sys
from pathlib import Path

lines = Path(sys.argv[1]).read_text().splitlines()
before, after = [sum(60 * int(m) + float(s) for m, s in re.findall(r"(\d+)m([\d.]+)s", lines[i])) for i in (1, 3)]
print(round(after - before))
