"""Each waiver of an advisory has a reason and a date of review that has not passed: waivers.py DENY_TOML"""

import datetime
import pathlib
import re
import sys
import tomllib

if len(sys.argv) != 2:
    sys.exit(__doc__)
today = datetime.date.today()
late = []
for waiver in tomllib.loads(pathlib.Path(sys.argv[1]).read_text())["advisories"]["ignore"]:
    found = re.fullmatch(r"(.{20,}); review by (\d{4}-\d{2}-\d{2})", waiver.get("reason", ""))
    if not found:
        late.append(f"{waiver['id']}: no reason that ends in \"; review by YYYY-MM-DD\"")
    elif datetime.date.fromisoformat(found[2]) < today:
        late.append(f"{waiver['id']}: to be looked at again since {found[2]}")
sys.exit("\n".join(late) or 0)
