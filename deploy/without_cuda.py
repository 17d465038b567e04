"""Which of the locked packages does a machine without a GPU need? All but torch, which it has from elsewhere,
and what only torch's CUDA build brings.

    python deploy/without_cuda.py requirements.txt > cpu.txt
"""

import re
import sys
from pathlib import Path

_CUDA = re.compile(r"(torch|triton|cuda-[\w-]+|nvidia-[\w-]+)==")


def without_cuda(requirements: str) -> str:
    """The requirements, each with the lines of its hashes, but for those of CUDA."""
    entries = re.split(r"(?m)^(?=[^\s#])", requirements)
    return "".join(entry for entry in entries if not _CUDA.match(entry))


if __name__ == "__main__":
    sys.stdout.write(without_cuda(Path(sys.argv[1]).read_text()))
