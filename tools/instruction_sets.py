"""That no AVX-512 instruction stands where a CPU without it could come.

    python tools/instruction_sets.py [LIBRARY]

Looks at every function of the built library. One that uses a 512-bit or a mask register must belong to the objects that
were compiled for AVX-512, and to none of the others: an inline function of a header is in several objects, of which the
linker keeps one.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
AVX512 = re.compile(r"%zmm|%k[1-7]\b|%[xy]mm(1[6-9]|2[0-9]|3[01])\b")


def lines_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def functions_with_avx512(library):
    """Names of the functions that cannot run on a CPU with AVX2."""
    found, name = set(), None
    for line in lines_of("objdump", "-d", "--no-show-raw-insn", library):
        if line.endswith(">:"):
            name = line[line.index("<") + 1 : -2]
        elif AVX512.search(line):
            found.add(name)
    return found


def shared_functions(object_):
    """Names of the functions of an object that the linker may take for another object's."""
    symbols = (line.split() for line in lines_of("nm", "--defined-only", object_))
    return {symbol[-1] for symbol in symbols if symbol[-2] in "TWV"}


def all_functions(object_):
    return {line.split()[-1] for line in lines_of("nm", "--defined-only", object_)}


def main():
    library = Path(sys.argv[1]) if len(sys.argv) > 1 else next((ROOT / "torch_ext" / "rusttorch").glob("_C*.so"))
    objects = list((ROOT / "build").glob("temp.*/**/*.o"))
    own = [o for o in objects if o.name.endswith(".avx512.o")]
    others = [o for o in objects if not o.name.endswith(".avx512.o")]
    if not own or not others:
        sys.exit("build first: there are no objects in build/temp.*")
    wide = functions_with_avx512(library)
    outside = wide - set().union(*map(all_functions, own))
    elsewhere = wide & set().union(*map(shared_functions, others))
    print(
        f"{library.name}: {len(wide)} functions with AVX-512, all of {len(own)} objects compiled for it; "
        f"{len(outside)} that are none of theirs, {len(elsewhere)} that {len(others)} other objects may call"
    )
    sys.exit("\n".join(sorted(outside | elsewhere)) if outside or elsewhere else 0)


if __name__ == "__main__":
    main()
