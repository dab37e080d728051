"""Keys, as the unit tests have them."""

from tests.unit.audit_publisher.conftest import private_key as private_key
from tests.unit.audit_publisher.conftest import private_key_file as private_key_file
from tests.unit.audit_publisher.conftest import public_pem as public_pem
