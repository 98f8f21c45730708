"""The service over HTTP: connections, routes, refusals as problems, the dashboard."""
