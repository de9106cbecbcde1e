from __future__ import annotations

import subprocess
import sys


def test_importing_the_package_and_the_reference_loads_no_nixl() -> None:
    code = (
        "import sys;"
        "import pdray.transfer, pdray.transfer.loopback, pdray.transfer.transfer_thread;"
        "print([name for name in sys.modules if name.split('.')[0].startswith(('nixl', 'torch'))])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert result.stdout.strip() == "[]"
