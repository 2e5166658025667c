"""The page of ``clip-guidance ui``, one file a tab; needs the extra ``ui`` (gradio).

Nothing is sent anywhere: no sharing, no statistics, no fonts from elsewhere.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
