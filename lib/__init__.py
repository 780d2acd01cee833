import sys

# jsonschema, which reads notebooks, would build a grammar of internationalised addresses as it is imported: seconds for each
# process, and no notebook holds such an address
sys.modules.setdefault("rfc3987_syntax", None)
