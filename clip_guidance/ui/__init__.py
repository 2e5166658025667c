"""The page that ``clip-guidance ui`` serves, one file per tab.

The page needs the extra ``ui`` (gradio). It sends nothing to other machines: sharing, usage statistics and web fonts
are off.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads the variable when it is imported
