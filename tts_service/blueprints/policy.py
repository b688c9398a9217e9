"""What our own pages may do in a browser."""

from flask import Response

#: Everything comes from here, and nothing runs that is written into the page; sound that was
#: fetched is played from memory (`blob:`).
_POLICY = "; ".join(
    [
        "default-src 'self'",
        "media-src 'self' blob:",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


def under_policy(page: Response) -> Response:
    """The page with the policy that a browser holds it to; `front.protection` adds the rest."""
    page.headers["Content-Security-Policy"] = _POLICY
    return page
