import gc
import sys

# importing makes a million objects that stay; Python would look through all of them for garbage, hundreds of times
gc.set_threshold(50_000, 20, 20)
# jsonschema, which reads notebooks, would build a grammar of internationalised addresses as it is imported: seconds for each
# process, and no notebook holds such an address
sys.modules.setdefault("rfc3987_syntax", None)
