"""`manage.py audit_doctor`: the whole configuration, examined for real.

Each app registers examinations of its own parts (``audit_doctor`` of its AppConfig names the
module), so that imports run one way and a service that has the capture tier alone is examined
for what it has. `examinations` is what an app needs; `running` and `printing` belong to the
command.
"""
