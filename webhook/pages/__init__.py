"""The status page: is the copy whole, and if not, what to press. For people; programs have /v1.

gate.py lets callers in, views.py shows, actions.py does; sessions.py, charts.py and words.py are what they
need. The page works without JavaScript; static/page.js keeps it up to date.
"""

from webhook.pages import actions, views
from webhook.pages.gate import pages

__all__ = ["actions", "pages", "views"]
