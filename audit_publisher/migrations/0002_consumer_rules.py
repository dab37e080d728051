"""Rules of a consumer: services and callers are said in so many words, and how it may sign.

An empty list of services meant every one, and events could name any caller. What is there keeps
that, now written as ``*``; it also goes on to be reported, not refused, when it sends a request
again. New consumers begin with nothing allowed.
"""

from django.db import migrations, models

import audit_publisher.models


def keep_what_was_allowed(apps, schema_editor):
    consumers = apps.get_model("audit_publisher", "Consumer").objects
    for consumer in consumers.using(schema_editor.connection.alias):
        if not consumer.service_names.strip():
            consumer.service_names = "*"
        consumer.caller_ids = "*"
        consumer.replay = "report"
        consumer.save(update_fields=["service_names", "caller_ids", "replay"])


def as_it_was(apps, schema_editor):
    consumers = apps.get_model("audit_publisher", "Consumer").objects
    for consumer in consumers.using(schema_editor.connection.alias):
        if "*" in consumer.service_names.split():
            consumer.service_names = ""
            consumer.save(update_fields=["service_names"])


class Migration(migrations.Migration):

    dependencies = [
        ("audit_publisher", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name='consumer',
            name='caller_ids',
            field=models.TextField(blank=True, help_text='Which consumer ids its events may name as their caller, one a line; * for every one, as a service needs that records who calls it. Empty: its own id only.', validators=[audit_publisher.models.validate_names], verbose_name='consumers in its events'),
        ),
        migrations.AddField(
            model_name='consumer',
            name='replay',
            field=models.CharField(choices=[('inherit', 'as the installation says (AUDIT_PUBLISHER_REPLAY)'), ('enforce', 'enforce: refuse it'), ('report', 'report: take it, count it and warn'), ('off', 'off: do not look')], default='inherit', help_text='What a signed request gets that was taken before. Only where the signature is enforced is it refused. See docs/signatures.md.', max_length=10, verbose_name='sent again'),
        ),
        migrations.AddField(
            model_name='consumer',
            name='schemes',
            field=models.CharField(choices=[('any', 'the legacy signature, or message signatures'), ('message', 'message signatures only (RFC 9421)')], default='any', help_text='The legacy signature covers neither path nor body. Once all its processes sign messages, accept nothing else, so that nobody can go back to less.', max_length=10, verbose_name='kinds of signature'),
        ),
        migrations.AlterField(
            model_name='consumer',
            name='service_names',
            field=models.TextField(blank=True, help_text='The services it may publish for, one a line, exactly as in service_name; shop-* for all that begin with shop-, * for every service. Empty: none.', validators=[audit_publisher.models.validate_names], verbose_name='services'),
        ),
        migrations.RunPython(keep_what_was_allowed, as_it_was),
    ]
