"""Names of the headers that replies have, for what writes them and for what reads them."""

REPLY_HEADER = b"x-reprise-cache"
INFO_HEADER = b"x-reprise-info"
