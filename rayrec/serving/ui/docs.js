// The API's description, drawn by Swagger UI; its assets come from this service alone.
window.SwaggerUIBundle({ url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null });
