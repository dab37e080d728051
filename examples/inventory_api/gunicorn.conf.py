"""How the example service is served; the header part is what a service behind a proxy copies."""

import os

bind = os.environ.get("INVENTORY_BIND", "127.0.0.1:8100")
workers = int(os.environ.get("INVENTORY_WORKERS", "1"))
worker_class = "gthread"
threads = 4
preload_app = False
graceful_timeout = 10
# Keep-alive of the callers' connections, seconds.
keepalive = 15
accesslog = None
# Newer gunicorns open one per user, so that two services would take it from each other.
control_socket_disable = True

# Older partners spell our headers with underscores (WM_CONSUMER.ID). gunicorn drops such names
# in silence, because a proxy may not have cleaned them; these may pass from the local proxy.
forwarder_headers = (
    "SCRIPT_NAME,PATH_INFO,"
    "WM_CONSUMER.ID,WM_SITE_ID,WM_QOS.CORRELATION_ID,WM_SVC.NAME,WM_SVC.VERSION,WM_SVC.ENV"
)
forwarded_allow_ips = "127.0.0.1,::1"
