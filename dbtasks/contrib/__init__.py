"""dbtasks inside of other servers.

Owns nothing itself: each module here is one server's door. Never imported by the rest of the
package.
"""
