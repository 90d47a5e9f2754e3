"""`python3 kssm/train_kssm_v4.py`: train K-SSM v4. The same as `kssm train v4`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # Run by path, the interpreter puts kssm/ first on sys.path, where our file names would shadow others'.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "kssm"]
    sys.path.insert(0, str(ROOT))
    from kssm.interpreter import use_project_environment

    use_project_environment(ROOT)
    from kssm.cli import train_main

    sys.exit(train_main("v4"))
