"""The three production sites. An admin may change them; a later migration never does."""

from django.db import migrations

SITES = (
    ("US", "United States", "1704989259133687000", True),
    ("CA", "Canada", "1704989474816248000", False),
    ("MX", "Mexico", "1704989390144984000", False),
)


def add_sites(apps, schema_editor):
    Site = apps.get_model("audit_sink", "Site")
    for code, name, site_id, takes_unlabelled in SITES:
        Site.objects.using(schema_editor.connection.alias).get_or_create(
            code=code,
            defaults={"name": name, "site_id": site_id, "takes_unlabelled": takes_unlabelled},
        )


class Migration(migrations.Migration):
    dependencies = [("audit_sink", "0001_initial")]

    operations = [migrations.RunPython(add_sites, migrations.RunPython.noop)]
