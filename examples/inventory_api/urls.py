"""Routes: `iac` is inventory and catalog, `dsd` is direct store delivery."""

from django.urls import path

from . import views

urlpatterns = [
    path("health", views.health),
    path("iac/v1/inventory", views.InventoryView.as_view()),
    path("iac/v1/inventory/bulk", views.BulkView.as_view()),
    path("iac/v1/inventory/snapshot", views.SnapshotView.as_view()),
    path("iac/v1/inventory/<item>", views.InventoryItemView.as_view()),
    path("iac/v1/forecast/<item>", views.ForecastView.as_view()),
    path("iac/v1/availability/<item>", views.availability),
    path("dsd/v1/shipments/<id>", views.ShipmentView.as_view()),
    path("dsd/v1/shipments/<id>/events", views.shipment_events),
    path("dsd/v1/shipments/<id>/appointment", views.appointment),
    path("dsd/v1/payments", views.PaymentView.as_view()),
]
